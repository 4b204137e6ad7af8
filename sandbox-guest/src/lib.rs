//! What runs inside a sandbox as PID 1: mounts, exec, egress on loopback.
