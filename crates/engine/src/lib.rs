//! The runner: recipe, plan, calibration, statistics, journal.
