//! The REST front: translates between HTTP and the use cases, nothing else.
