package command

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/sethvargo/go-retry"

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

// waitEvery is the pause between two questions of --wait.
const waitEvery = 100 * time.Millisecond

// awaitHealth asks whether the agent is what key says, Live or Ready, until it is or the time to
// wait is over, and prints the last answer.
func (a *app) awaitHealth(ctx context.Context, f statusFlags, key string) error {
	word := strings.ToLower(key)
	end := time.Now().Add(max(f.wait, healthTimeout))
	var body []byte
	ask := func(ctx context.Context) (err error) {
		ctx, cancel := context.WithTimeout(ctx, min(healthTimeout, time.Until(end)))
		defer cancel()
		body, err = a.askHealth(ctx, f.reach, key)
		if _, usage := errors.AsType[usageError](err); usage {
			return err // no time mends it
		}
		return retry.RetryableError(err)
	}
	done := a.progress("waiting until the agent is " + word)
	err := retry.Do(ctx, retry.WithMaxDuration(f.wait, retry.NewConstant(waitEvery)), ask)
	done()
	if body == nil {
		return err
	}
	if err != nil {
		word = "not " + word
	}
	return cmp.Or(a.print(&f.out, json.RawMessage(body), word+"\n"), err)
}

// askHealth asks once. It needs neither a token nor rights on its file, so that it can run as
// any user. With a body, an error is the exit code of an agent that is not what key says.
func (a *app) askHealth(ctx context.Context, f reachFlags, key string) ([]byte, error) {
	client, _, err := a.reach(f)
	if err != nil {
		return nil, err
	}
	status, body, err := client.ask(ctx, http.MethodGet, "/"+strings.ToLower(key), nil)
	switch {
	case err != nil && ctx.Err() != nil: // it hangs: as good as absent
		return nil, withHint(&upstream.Error{Message: err.Error(), Err: upstream.ErrUnavailable}, hintHangs)
	case err != nil:
		return nil, err
	case !holds(body, key), status != http.StatusOK && status != http.StatusServiceUnavailable:
		return nil, client.refused(status, body)
	case status != http.StatusOK:
		return body, exitCode(upstream.ExitFailed)
	}
	return body, nil
}
