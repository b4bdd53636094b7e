//! Programs, their limits, users, environment and streams.
