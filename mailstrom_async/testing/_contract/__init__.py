"""What `StorageContract` is made of: one room for each thing that a store promises."""
