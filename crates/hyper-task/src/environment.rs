//! Variables of a supervisor's environment, for a hyperd whose user may not write where root's supervisors do.

/// Instead of `/run/hyper`: what a running pod has, and below `s` its supervisor's socket.
pub const RUN_DIR: &str = "HYPER_RUN_DIR";
/// Instead of `/var/lib/hyper`: what is kept.
pub const STATE_DIR: &str = "HYPER_STATE_DIR";
/// The configuration of supervisors, instead of `/etc/hyper/supervisor.toml`.
pub const CONFIG: &str = "HYPER_SUPERVISOR_CONFIG";
