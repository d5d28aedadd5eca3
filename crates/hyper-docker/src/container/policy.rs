//! Restart policies and health checks: Docker's words to the engine's, and back.

use bollard_stubs::models::{HealthConfig, RestartPolicy, RestartPolicyNameEnum};
use hyper_engine::Health;
use hyper_engine::spec::{HealthCheck, Restart, RestartPolicy as Policy};
use serde_json::{Value, json};

use crate::error::{ApiError, ApiResult};

/// `None`: nothing is said of it.
pub(crate) fn restart(policy: Option<&RestartPolicy>) -> ApiResult<Option<Restart>> {
    let Some(given) = policy else { return Ok(None) };
    let policy = match given.name {
        None | Some(RestartPolicyNameEnum::EMPTY) => return Ok(None),
        Some(RestartPolicyNameEnum::NO) => Policy::No,
        Some(RestartPolicyNameEnum::ALWAYS) => Policy::Always,
        Some(RestartPolicyNameEnum::UNLESS_STOPPED) => Policy::UnlessStopped,
        Some(RestartPolicyNameEnum::ON_FAILURE) => Policy::OnFailure,
    };
    let retries = given.maximum_retry_count.unwrap_or_default();
    let max_retries = u32::try_from(retries).map_err(|_| {
        ApiError::invalid(format!(
            "invalid restart policy: maximum retry count {retries}: 0 or more is wanted"
        ))
    })?;
    Ok(Some(Restart { policy, max_retries }))
}

pub(crate) fn restart_policy(restart: Restart) -> Value {
    json!({ "Name": restart.policy.word(), "MaximumRetryCount": restart.max_retries })
}

pub(crate) fn health(config: &HealthConfig) -> HealthCheck {
    HealthCheck {
        test: config.test.clone().unwrap_or_default(),
        interval_ns: config.interval.unwrap_or_default(),
        timeout_ns: config.timeout.unwrap_or_default(),
        start_period_ns: config.start_period.unwrap_or_default(),
        start_interval_ns: config.start_interval.unwrap_or_default(),
        retries: config.retries.unwrap_or_default(),
        shell: Vec::new(),
    }
}

pub(crate) fn healthcheck(check: &HealthCheck) -> Value {
    let mut all = json!({ "Test": check.test });
    for (name, value) in [
        ("Interval", check.interval_ns),
        ("Timeout", check.timeout_ns),
        ("StartPeriod", check.start_period_ns),
        ("StartInterval", check.start_interval_ns),
        ("Retries", check.retries),
    ] {
        if value != 0 {
            all[name] = json!(value);
        }
    }
    all
}

pub(crate) fn health_state(health: &Health) -> Value {
    let log: Vec<Value> = health
        .log
        .iter()
        .map(|probe| {
            json!({
                "Start": hyper_stdio::rfc3339_nano(probe.start_ns),
                "End": hyper_stdio::rfc3339_nano(probe.end_ns),
                "ExitCode": probe.exit_code,
                "Output": probe.output,
            })
        })
        .collect();
    json!({ "Status": health.status.word(), "FailingStreak": health.failing_streak, "Log": log })
}
