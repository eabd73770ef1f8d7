package command

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"secretagent/upstream"
)

// openStatus prints a link to the status page that the running agent makes for a caller.
func (a *app) openStatus(ctx context.Context, f reachFlags) error {
	client, r, err := a.client(f)
	if err != nil {
		return err
	}
	switch {
	case !r.StatusPage:
		return usagef("endpoint.statusPage is off: there is no page to open")
	case r.Listen == "":
		return usagef("endpoint.listen is off: a browser cannot reach the agent over its unix socket")
	}
	body, err := askStatus(ctx, client, http.MethodPost, "/status/link")
	if err != nil {
		return err
	}
	var answer struct{ Link string }
	if err := json.Unmarshal(body, &answer); err != nil || !strings.HasPrefix(answer.Link, "http") {
		return &upstream.Error{Message: "the answer is not a link to a status page", Err: upstream.ErrUnavailable}
	}
	return a.write([]byte(answer.Link + "\n"))
}
