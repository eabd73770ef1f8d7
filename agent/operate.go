package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"secretagent/agent/config"
	"secretagent/upstream"
	"secretagent/upstream/kmsserver"
)

// operation answers what whoever runs the agent asks of its backend, over the socket of the KMS API. It ends
// with ctx, and what should go on after its caller has left goes on in the background.
type operation func(ctx context.Context, query url.Values) (*kmsserver.Operated, error)

// operate answers the operations of the backend, and what the endpoint answers the operator.
func (a *Agent) operate(ctx context.Context, method, path string, query url.Values) (*kmsserver.Operated, error) {
	if do := a.backend.operations()[method+" "+path]; do != nil {
		return do(ctx, query)
	}
	if status, body, ok := a.endpoint.Operator(ctx, method, path); ok {
		return &kmsserver.Operated{Status: status, Body: body}, nil
	}
	return nil, nil
}

// operated is the answer of an operation, as JSON, or its error.
func operated(answer any, err error) (*kmsserver.Operated, error) {
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(answer)
	return &kmsserver.Operated{Body: body}, err
}

// askAgent asks the agent that runs with cfg for an operation of its backend, and copies the answer to out. It
// reports whether such an agent runs, and is bounded by [kmsserver.MaxOperation]. After an error out may have
// been given a part of the answer.
func askAgent(ctx context.Context, cfg *config.Config, method, path string, query url.Values, out io.Writer) (running bool, err error) {
	api, _ := cfg.Upstream.API()
	if api == nil {
		return false, nil
	}
	socket := string(api.Socket)
	if running, err = answers(ctx, socket); err != nil || !running {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, kmsserver.MaxOperation)
	defer cancel()
	failed := func(reason string) error {
		return &upstream.Error{Message: fmt.Sprintf("the agent at %s: %s", socket, reason), Err: upstream.ErrUnavailable}
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path+"?"+query.Encode(), nil)
	if err != nil {
		return true, err
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true, DisableCompression: true,
	}
	response, err := transport.RoundTrip(request)
	switch {
	case ctx.Err() != nil:
		return true, ctx.Err()
	case err != nil:
		return true, failed(err.Error())
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		var fault upstream.Fault
		if err := json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&fault); err != nil || fault.Code == "" {
			return true, failed(fmt.Sprintf("status %d, which is not an answer of secretagent", response.StatusCode))
		}
		return true, &upstream.Error{Code: fault.Code, Message: fault.Message, RequestID: fault.RequestID, Err: upstream.FromCode(fault.Code, response.StatusCode)}
	}
	// A body that is shorter than its Content-Length ends with an error.
	if _, err := io.Copy(out, response.Body); err != nil {
		if ctx.Err() != nil {
			return true, ctx.Err()
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return true, failed("the answer broke off")
		}
		return true, err
	}
	return true, nil
}

// maxJSON bounds an answer in JSON.
const maxJSON = 16 << 20

// bounded keeps maxJSON bytes.
type bounded struct{ kept []byte }

func (b *bounded) Write(p []byte) (int, error) {
	if len(b.kept)+len(p) > maxJSON {
		return 0, errors.New("the answer is too large")
	}
	b.kept = append(b.kept, p...)
	return len(p), nil
}

// askAgentJSON is askAgent for an answer in JSON.
func askAgentJSON(ctx context.Context, cfg *config.Config, method, path string, query url.Values, answer any) (running bool, err error) {
	var body bounded
	running, err = askAgent(ctx, cfg, method, path, query, &body)
	if err == nil && running {
		err = json.Unmarshal(body.kept, answer)
	}
	return running, err
}
