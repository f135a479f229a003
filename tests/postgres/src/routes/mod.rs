//! The routes, a file each.

pub mod echo;
pub mod health;
pub mod orders;
pub mod ping;
