"""The compiled engine of the processor: softmax and reductions of a panel in one C sweep."""
