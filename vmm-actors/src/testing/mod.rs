//! Fakes for fast tests: a driver whose VMs are idle processes, a guest that lives in the test, and stand-ins for the
//! helper programs. The processes are real, so that their deaths are.

mod driver;
mod guest;
mod programs;

pub use driver::{FakeDriver, Fault};
pub use guest::FakeGuest;
#[cfg(test)]
pub use programs::fake_shim;
pub use programs::{fake_virtiofsd, write_program};
