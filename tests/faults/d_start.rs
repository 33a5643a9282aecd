//! A start that was never accepted leaves no trace that counts, and an end counts when it was heard.
