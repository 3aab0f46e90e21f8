//! Assembles the router, its layers and the listeners, and stops them gracefully.
