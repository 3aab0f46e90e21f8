//! Rotations: start, progress, pause, resume and cancel.

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::Rotation;
use crate::model::{ErrorCode, Job, JobCommand, JobId, Operation, Refusal};

use super::Front;
use super::body::{answer, read_or_default};
use super::caller::Authenticated;
use super::problem::problem;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RotateBody {
    #[serde(default)]
    dry_run: Option<bool>,
}

/// An object without members.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoMembers {}

pub(super) async fn start(
    State(front): State<Front>,
    Authenticated(caller, _): Authenticated,
    body: Body,
) -> Response {
    let dry_run = match read_or_default::<RotateBody>(&front, body).await {
        Ok(body) => body.dry_run.unwrap_or(false),
        Err(refusal) => return problem(&front.app.refuse(&caller, Operation::Rotate, refusal).await),
    };
    match front.app.rotate(&caller, dry_run).await {
        Err(refusal) => problem(&refusal),
        Ok(Rotation::Forecast { target, deks, kms_calls }) => answer(
            200,
            &json!({ "dry_run": true, "target": target.to_string(), "deks": deks, "kms_calls": kms_calls }),
        ),
        Ok(Rotation::Job(job)) => {
            let mut response = answer(202, &job_json(&job));
            if let Ok(location) = HeaderValue::from_str(&format!("/byok/rotate/{}", job.id)) {
                response.headers_mut().insert(header::LOCATION, location);
            }
            response
        }
    }
}

pub(super) async fn show(
    State(front): State<Front>,
    Authenticated(caller, _): Authenticated,
    id: Result<Path<String>, PathRejection>,
) -> Response {
    let answered = match id_of(id) {
        Ok(id) => front.app.rotation(&caller, Some(id)).await,
        Err(refusal) => Err(refusal),
    };
    match answered {
        Ok(job) => answer(200, &job_json(&job)),
        Err(refusal) => problem(&refusal),
    }
}

pub(super) async fn pause(
    state: State<Front>,
    caller: Authenticated,
    id: Result<Path<String>, PathRejection>,
    body: Body,
) -> Response {
    command(state, caller, id, body, JobCommand::Pause).await
}

pub(super) async fn resume(
    state: State<Front>,
    caller: Authenticated,
    id: Result<Path<String>, PathRejection>,
    body: Body,
) -> Response {
    command(state, caller, id, body, JobCommand::Resume).await
}

pub(super) async fn cancel(
    state: State<Front>,
    caller: Authenticated,
    id: Result<Path<String>, PathRejection>,
    body: Body,
) -> Response {
    command(state, caller, id, body, JobCommand::Cancel).await
}

async fn command(
    State(front): State<Front>,
    Authenticated(caller, _): Authenticated,
    id: Result<Path<String>, PathRejection>,
    body: Body,
    command: JobCommand,
) -> Response {
    let id = match id_of(id) {
        Ok(id) => id,
        Err(refusal) => return problem(&refusal),
    };
    let commanded = match read_or_default::<NoMembers>(&front, body).await {
        Ok(NoMembers {}) => front.app.command_rotation(&caller, id, command).await,
        Err(refusal) => Err(front.app.refuse(&caller, Operation::Rotate, refusal).await),
    };
    match commanded {
        Ok(job) => answer(200, &job_json(&job)),
        Err(refusal) => problem(&refusal),
    }
}

fn id_of(id: Result<Path<String>, PathRejection>) -> Result<JobId, Refusal> {
    let Path(id) = id.map_err(|_| {
        let why = "The path is not UTF-8 after percent-decoding.";
        Refusal::because(ErrorCode::RequestMalformed, why)
    })?;
    id.parse().map_err(|_| ErrorCode::RotationNotFound.into())
}

fn job_json(job: &Job) -> Value {
    json!({
        "id": job.id.to_string(),
        "state": job.state.as_str(),
        "target": job.target.to_string(),
        "total": job.progress.total,
        "rewrapped": job.progress.rewrapped,
        "skipped": job.progress.skipped,
        "failed": job.progress.failed,
        "kms_calls": job.progress.kms_calls,
        "stalled": job.stalled.map(ErrorCode::as_str),
        "started_at": job.started_at.to_string(),
        "updated_at": job.updated_at.to_string(),
        "finished_at": job.finished_at.map(|at| at.to_string()),
    })
}
