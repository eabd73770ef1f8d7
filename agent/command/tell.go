package command

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"os"
	"slices"
	"time"

	"secretagent/agent"
	"secretagent/agent/config"
	"secretagent/upstream"
)

// Telling the running agent of a change takes so long at most, of which it may throttle us.
const (
	tellWithin = 5 * time.Second
	tellAgain  = 100 * time.Millisecond
)

// tellAgent tells the agent that runs with cfg, if one does, that the secret called name was
// changed in its upstream. Where that fails the change is made all the same: it warns.
func (a *app) tellAgent(ctx context.Context, cfg *config.Config, name upstream.SecretName) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tellWithin)
	defer cancel()
	if err := a.tell(ctx, cfg, name); err != nil {
		a.logger().Warn("the running agent was not told of the change", "secret", string(name), "err", err,
			"hint", "it reads the new value within cache.ttl")
	}
}

func (a *app) tell(ctx context.Context, cfg *config.Config, name upstream.SecretName) error {
	c, _, err := a.client(reachFlags{caller: callerFor(&cfg.Endpoint, name)})
	if errors.Is(err, upstream.ErrUnavailable) {
		return nil // no agent has run yet: there is no token
	} else if err != nil {
		return err
	}
	for {
		status, body, err := c.ask(ctx, http.MethodPost, "/secretsmanager/changed", url.Values{"secretId": {string(name)}})
		switch {
		case err != nil && ctx.Err() == nil:
			return nil // none runs
		case err != nil:
			return err
		case status == http.StatusOK:
			return nil
		case status != http.StatusTooManyRequests:
			return c.refused(status, body)
		}
		select {
		case <-time.After(tellAgain):
		case <-ctx.Done():
			return c.refused(status, body)
		}
	}
}

// callerFor returns the first of the callers that may read the secret, and as whom we can
// ask; empty for none.
func callerFor(cfg *config.Endpoint, name upstream.SecretName) string {
	for _, c := range cfg.Callers {
		if len(c.Secrets) == 0 || !upstream.Permits(c.Secrets, name) {
			continue
		}
		known := cfg.Socket != "" && slices.Contains(c.UIDs, os.Getuid())
		if c.TokenFile != "" {
			_, err := agent.ReadToken(string(c.TokenFile))
			known = err == nil
		}
		if known {
			return c.Name
		}
	}
	return ""
}
