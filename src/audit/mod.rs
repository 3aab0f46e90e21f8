//! The audit log: what an entry holds, how it is packed, and the committer that makes it durable.
