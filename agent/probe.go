package agent

import (
	"context"
	"errors"
	"log/slog"

	"secretagent/agent/config"
	"secretagent/upstream"
)

// probeName is asked for where the configuration declares no secret. That it does not exist,
// or may not be read, is an answer: somebody is there and has accepted our credentials.
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
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	var names []upstream.SecretRef
	for _, s := range cfg.Secrets {
		names = append(names, s.Name)
	}
	if len(names) == 0 {
		names = append(names, upstream.SecretRef{SecretName: probeName})
	}
	if cfg.Upstream.Alibaba == nil {
		manager, closeManager, err := OpenManager(ctx, cfg, log)
		if err != nil {
			return nil, err
		}
		results := probe(ctx, manager, "the built-in backend", names)
		return results, closeManager()
	}
	var results []ProbeResult
	for i, e := range cfg.Upstream.Alibaba.Endpoints {
		one := *cfg.Upstream.Alibaba
		one.Endpoints = cfg.Upstream.Alibaba.Endpoints[i : i+1]
		one.Retry.MaxAttempts = 1
		one.Deadline = one.Timeout
		c, err := openCloud(&one, log, nil)
		if err != nil {
			return results, err
		}
		host := e.Host
		if host == "" {
			host = "kms." + e.Region + ".aliyuncs.com"
		}
		for _, r := range probe(ctx, c, host, names) {
			r.Credential = c.Status().Credential.Source
			results = append(results, r)
		}
		if err := c.close(); err != nil {
			return results, err
		}
	}
	return results, nil
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
