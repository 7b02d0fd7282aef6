//! The embedded engine on real redb: what every engine must do, and what this one does when its disk fails.

mod conformance;
mod disk;
mod driver;
mod faults;
mod files;
