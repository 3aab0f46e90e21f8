//! The GraphiQL page, served from files embedded in the binary. Speaks only to the public API.
