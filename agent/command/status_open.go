package command

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"secretagent/agent/config"
	"secretagent/upstream"
)

// openStatus prints a link to the status page that the running agent makes for a caller.
func (a *app) openStatus(ctx context.Context, cfg *config.Config, caller string) error {
	switch {
	case !cfg.Endpoint.StatusPage:
		return usagef("%s: endpoint.statusPage is off: there is no page to open", cfg.File())
	case cfg.Endpoint.Listen == "":
		return usagef("%s: endpoint.listen is off: a browser cannot reach the agent over its unix socket", cfg.File())
	}
	body, err := askStatus(ctx, cfg, caller, http.MethodPost, "/status/link")
	if err != nil {
		return err
	}
	var answer struct{ Link string }
	if err := json.Unmarshal(body, &answer); err != nil || !strings.HasPrefix(answer.Link, "http") {
		return &upstream.Error{Message: "the answer is not a link to a status page", Err: upstream.ErrUnavailable}
	}
	return a.write([]byte(answer.Link + "\n"))
}
