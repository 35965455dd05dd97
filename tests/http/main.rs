//! What `[http] listen` serves, asked of real daemons over TCP: routes, metrics, hostile requests, the page in a browser, a Prometheus.

mod client;
mod daemon;
mod fuzz;
mod metrics;
mod monitoring;
mod page;
mod routes;
mod tools;
