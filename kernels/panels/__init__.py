"""Panels of rows, on torch or in compiled C: the engine of the processor and of plain torch."""
