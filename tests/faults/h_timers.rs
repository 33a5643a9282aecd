//! No timer contradicts the config.
