//! What a user meets in the first hour, and expects to be as with runc: the tests of issue "1 of 7", part A.
//!
//! Every test here also passes on the control runtime (`BULKHEAD_TEST_CONTROL=1`), unless it says why it cannot.

mod files;
mod memory;
mod network;
mod processes;
