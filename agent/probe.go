package agent

import (
	"cmp"
	"context"
	"errors"
	"log/slog"

	"secretagent/agent/config"
	"secretagent/upstream"
)

// probeName is asked for where the configuration declares no secret. That it does not exist,
// or may not be read, is an answer: the service is there and has accepted our credentials.
const probeName = "secretagent-probe"

// ProbeResult is what one endpoint answered to a harmless read.
type ProbeResult struct {
	Endpoint   string              // host, or what stands for the built-in backend
	Credential string              // the source that was used, such as default/oidc_role_arn; empty: none was found or needed
	Secret     upstream.SecretName // that was asked for; its value was thrown away
	Err        error               // nil: the endpoint answered and accepted the credentials
}

// Probe reads every declared secret from every endpoint of the configured upstream, one attempt
// each, and says how that went. It blocks for at most the configured timeout per read, or
// until ctx ends. An error means that not even trying was possible.
func Probe(ctx context.Context, cfg *config.Config, log *slog.Logger) ([]ProbeResult, error) {
	var refs []upstream.SecretRef
	for _, s := range cfg.Secrets {
		refs = append(refs, s.Name)
	}
	if len(refs) == 0 {
		refs = append(refs, upstream.SecretRef{SecretName: probeName})
	}
	return kindOf(&cfg.Upstream).probe(ctx, refs, cmp.Or(log, slog.New(slog.DiscardHandler)))
}

func probe(ctx context.Context, m upstream.Manager, endpoint string, refs []upstream.SecretRef) []ProbeResult {
	var results []ProbeResult
	for _, ref := range refs {
		_, err := m.GetSecretValue(ctx, ref)
		if ref.SecretName == probeName && (errors.Is(err, upstream.ErrNotFound) || errors.Is(err, upstream.ErrAccessDenied)) {
			err = nil
		}
		results = append(results, ProbeResult{Endpoint: endpoint, Secret: ref.SecretName, Err: err})
	}
	return results
}
