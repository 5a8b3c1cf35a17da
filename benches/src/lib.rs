//! Benchmarks of Pilot. They are their own package, outside the default members, so that what they are measured against is
//! no dependency of Pilot. `cargo bench --package pilot-benches`.
