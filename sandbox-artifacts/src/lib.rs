//! Kernel, agent, helper and base image on disk: find, verify by hash, build.
