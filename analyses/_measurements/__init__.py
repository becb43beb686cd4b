"""Measurements that several families share: received attention, query-key rows, head outputs."""
