//! What the daemon shows of itself: log, status, control socket.
