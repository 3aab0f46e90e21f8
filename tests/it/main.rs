//! The one integration target: the real binary against real servers, and the house's own rules.

mod architecture;
mod canary;
mod cli;
mod faults;
mod rest;
mod roles;
mod rotation;
mod support;
mod web;
