//! Egress proxy: policy, HTTP and TLS, credential injection, response scrubbing, audit.
