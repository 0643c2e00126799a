//! Counts calls as S3's door counts requests: by method and by the code that their answers begin with.
//!
//! A stream's last word comes in its trailers, after hours maybe: what is counted is whether it began.

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use makai_ops::metrics as names;
use tokio::time::Instant;
use tonic::codegen::{Service, http};
use tonic::{Code, Status};
use tower_layer::Layer;

/// Puts [`Counted`] around the services of the door.
#[derive(Debug, Clone, Copy)]
pub(super) struct Counting;

impl<S> Layer<S> for Counting {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Counted<S> {
    inner: S,
}

impl<S, In, Out> Service<http::Request<In>> for Counted<S>
where
    S: Service<http::Request<In>, Response = http::Response<Out>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<S::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    #[expect(clippy::disallowed_methods, reason = "times calls in a shell; decides nothing that is agreed")]
    fn call(&mut self, request: http::Request<In>) -> Self::Future {
        let path = request.uri().path().to_owned();
        let begun = Instant::now();
        let answering = self.inner.call(request);
        Box::pin(async move {
            let answer = answering.await?;
            let code = Status::from_header_map(answer.headers()).map_or(Code::Ok, |status| status.code());
            let operation = operation(&path, answer.status(), code);
            metrics::histogram!(names::GATEWAY_REQUEST_SECONDS, "door" => "grpc", "operation" => operation.clone())
                .record(begun.elapsed());
            metrics::counter!(
                names::GATEWAY_REQUESTS, "door" => "grpc", "operation" => operation, "code" => name(code)
            )
            .increment(1);
            Ok(answer)
        })
    }
}

/// `Service.Method` of a path that somebody serves: what clients make up is one operation, `none`.
fn operation(path: &str, status: http::StatusCode, code: Code) -> String {
    let parts = path.strip_prefix('/').and_then(|path| path.split_once('/'));
    match parts {
        Some((service, method)) if status.is_success() && code != Code::Unimplemented => {
            let service = service.rsplit('.').next().unwrap_or(service);
            format!("{service}.{method}")
        }
        _ => "none".to_owned(),
    }
}

/// As gRPC writes it.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_served_has_a_name() {
        let ok = http::StatusCode::OK;
        assert_eq!(operation("/makai.jobs.v1.Jobs/Submit", ok, Code::Ok), "Jobs.Submit");
        assert_eq!(operation("/makai.jobs.v1.Jobs/Submit", ok, Code::NotFound), "Jobs.Submit");
        assert_eq!(operation("/made.up/Name", ok, Code::Unimplemented), "none");
        assert_eq!(operation("/made.up/Name", http::StatusCode::NOT_FOUND, Code::Ok), "none");
        assert_eq!(operation("no path", ok, Code::Ok), "none");
    }
}
