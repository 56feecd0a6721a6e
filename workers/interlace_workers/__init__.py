"""What runs next to weights: placement, replicas, executors, the zygote and its sandboxed children."""
