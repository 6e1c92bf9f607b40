"""From a store to records: which metric reads which rows."""
