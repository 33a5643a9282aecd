//! `protected` means that clients are served and that a death would be survived.
