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
	Warning    string              // what the credentials may do beyond their use
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
	log = cmp.Or(log, slog.New(slog.DiscardHandler))
	results, err := kindOf(&cfg.Upstream).probe(ctx, refs, log)
	if err != nil || cfg.Upstream.Alibaba == nil { // elsewhere whoever reads may write
		return results, err
	}
	rights, err := probeRights(ctx, cfg, refs, log)
	return append(results, rights...), err
}

// probeRights asks whether the credentials may write: whoever rotates must be, and nobody else
// should.
func probeRights(ctx context.Context, cfg *config.Config, refs []upstream.SecretRef, log *slog.Logger) (results []ProbeResult, err error) {
	m, closeManager, err := OpenManager(ctx, cfg, log, ExistingFiles)
	if err != nil {
		return nil, err
	}
	defer func() { err = cmp.Or(err, closeManager()) }()
	for _, r := range cfg.Rotations {
		result := ProbeResult{Endpoint: "rights to rotate", Secret: r.Secret}
		_, result.Err = m.ListSecretVersionIDs(ctx, upstream.ListSecretVersionIDsInput{SecretName: r.Secret})
		if result.Err == nil {
			_, result.Err = mayWrite(ctx, m, r.Secret)
		}
		results = append(results, result)
	}
	if len(cfg.Rotations) > 0 {
		return results, nil
	}
	for _, ref := range refs {
		if may, _ := mayWrite(ctx, m, ref.SecretName); may {
			results = append(results, ProbeResult{
				Endpoint: "rights", Secret: ref.SecretName,
				Warning: "warning: the credentials may also write (kms:UpdateSecretVersionStage): without rotations an agent needs kms:GetSecretValue and nothing else",
			})
		}
	}
	return results, nil
}

// mayWrite asks for a label that no version has to be taken off a version that is not there: an
// answer that this is so comes only to whoever may write. The error is that of a refusal.
func mayWrite(ctx context.Context, m upstream.Manager, name upstream.SecretName) (bool, error) {
	err := m.UpdateSecretVersionStage(ctx, upstream.UpdateSecretVersionStageInput{
		SecretName: name, VersionStage: probeName, RemoveFromVersion: probeName,
	})
	if errors.Is(err, upstream.ErrInvalidParameter) || errors.Is(err, upstream.ErrNotFound) {
		err = nil
	}
	return err == nil, err
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
