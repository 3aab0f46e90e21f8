//! The use cases. The caller is a parameter of every one of them; nothing is answered before its entry is durable.
