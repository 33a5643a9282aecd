//! Figures that any machine of the kind gives.
