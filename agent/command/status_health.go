package command

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"secretagent/agent/config"
	"secretagent/upstream"
)

// healthTimeout bounds a health check. A container runtime waits for some seconds itself.
const healthTimeout = 3 * time.Second

// health is one of the questions that the endpoint answers without a token.
type health struct {
	path    string
	key     string // of the answer
	yes, no string // for people
}

var (
	liveness  = health{"/live", "Live", "live", "not live"}
	readiness = health{"/ready", "Ready", "ready", "not ready"}
)

// holds reports whether body is a JSON object with the key.
func holds(body []byte, key string) bool {
	var answer map[string]any
	err := json.Unmarshal(body, &answer)
	_, there := answer[key]
	return err == nil && there
}

// checkHealth asks h and prints the answer. It needs neither a token nor rights on its file, so
// that it can run as any user.
func (a *app) checkHealth(ctx context.Context, cfg *config.Config, h health, out *output) error {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	client, err := reachEndpoint(cfg)
	if err != nil {
		return err
	}
	status, body, err := client.ask(ctx, http.MethodGet, h.path, nil)
	switch {
	case err != nil && ctx.Err() != nil: // it hangs: as good as absent
		return &upstream.Error{Message: err.Error(), Err: upstream.ErrUnavailable}
	case err != nil:
		return err
	case !holds(body, h.key), status != http.StatusOK && status != http.StatusServiceUnavailable:
		return client.refused(status, body)
	}
	switch {
	case out.json:
		err = a.writeIndented(body)
	case status == http.StatusOK:
		err = a.write([]byte(h.yes + "\n"))
	default:
		err = a.write([]byte(h.no + "\n"))
	}
	if err == nil && status != http.StatusOK {
		return exitCode(upstream.ExitFailed)
	}
	return err
}
