package command

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"secretagent/agent/config"
	"secretagent/upstream"
)

// healthTimeout bounds a health check. A container runtime waits for some seconds itself.
const healthTimeout = 3 * time.Second

// holds reports whether body is a JSON object with the key.
func holds(body []byte, key string) bool {
	var answer map[string]any
	err := json.Unmarshal(body, &answer)
	_, there := answer[key]
	return err == nil && there
}

// checkHealth asks whether the agent is what key says, Live or Ready, and prints the answer. It
// needs neither a token nor rights on its file, so that it can run as any user.
func (a *app) checkHealth(ctx context.Context, cfg *config.Config, key string, out *output) error {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	client, err := reachEndpoint(cfg)
	if err != nil {
		return err
	}
	word := strings.ToLower(key)
	status, body, err := client.ask(ctx, http.MethodGet, "/"+word, nil)
	switch {
	case err != nil && ctx.Err() != nil: // it hangs: as good as absent
		return &upstream.Error{Message: err.Error(), Err: upstream.ErrUnavailable}
	case err != nil:
		return err
	case !holds(body, key), status != http.StatusOK && status != http.StatusServiceUnavailable:
		return client.refused(status, body)
	case status == http.StatusOK:
		return a.print(out, json.RawMessage(body), word+"\n")
	}
	return cmp.Or(a.print(out, json.RawMessage(body), "not "+word+"\n"), error(exitCode(upstream.ExitFailed)))
}
