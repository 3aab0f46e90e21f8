//! The one integration target: the real binary against real servers, and the houses' own rules.

mod architecture;
mod rest;
mod support;
