//! Redlock over a quorum of independent Redis nodes.
