//! A VM that starts is announced.
