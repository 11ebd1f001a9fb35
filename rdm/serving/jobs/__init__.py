"""Jobs: admission, a fair queue, events, and a store that outlives the process."""
