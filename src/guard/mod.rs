//! The guard: one process per term that kills the child's tree at its own boot-time deadline.
