//! Guest memory: hostile, shared, and reached only through here.
