package kmsserver_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"secretagent/upstream"
	"secretagent/upstream/kmsserver"
)

// Whoever runs the agent is answered over the trusted socket, and nobody over another listener.
func TestOperator(t *testing.T) {
	var closed int
	file := func(size int64) *kmsserver.Operated {
		content := io.NopCloser(strings.NewReader(strings.Repeat("x", 1<<20)))
		return &kmsserver.Operated{File: closer{content, &closed}, Size: size}
	}
	f := start(t, func(o *kmsserver.Tuned) {
		o.Operator = func(_ context.Context, method, path string, query url.Values) (*kmsserver.Operated, error) {
			switch method + " " + path {
			case "GET /keys":
				return &kmsserver.Operated{Body: []byte(`{"Asked":"` + query.Get("id") + `"}`)}, nil
			case "POST /wrong":
				return nil, &upstream.Error{Message: "the key is in use", Err: upstream.ErrKeyNotFound}
			case "POST /refused":
				return &kmsserver.Operated{Status: http.StatusUnprocessableEntity, Body: []byte(`{}`)}, nil
			case "GET /whole":
				return file(1 << 20), nil
			case "GET /broken":
				return file(1<<20 + 1), nil
			}
			return nil, nil
		}
	})
	ask := func(client *http.Client, method, target string) (int, string, error) {
		t.Helper()
		request, err := http.NewRequest(method, target, nil)
		must(t, err)
		response, err := client.Do(request)
		must(t, err)
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		return response.StatusCode, string(body), err
	}
	if status, body, err := ask(f.local, "GET", "http://local/keys?id=7"); status != 200 || body != `{"Asked":"7"}` || err != nil {
		t.Errorf("an answer: %d %s, %v", status, body, err)
	}
	if status, body, err := ask(f.local, "POST", "http://local/wrong"); status != 404 || !strings.Contains(body, "the key is in use") || err != nil {
		t.Errorf("an error: %d %s, %v", status, body, err)
	}
	if status, body, err := ask(f.local, "POST", "http://local/refused"); status != 422 || body != `{}` || err != nil {
		t.Errorf("a status of its own: %d %s, %v", status, body, err)
	}
	if status, body, err := ask(f.local, "GET", "http://local/keys?%zz"); status != 400 || strings.Contains(body, "zz") || err != nil {
		t.Errorf("a malformed query: %d %s, %v", status, body, err)
	}
	if status, body, err := ask(f.local, "GET", "http://local/whole"); status != 200 || len(body) != 1<<20 || err != nil {
		t.Errorf("a file: %d, %d bytes, %v", status, len(body), err)
	}
	if _, body, err := ask(f.local, "GET", "http://local/broken"); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that ends too early: %d bytes, %v", len(body), err)
	}
	f.shutdown(t)
	if closed != 2 {
		t.Errorf("%d of 2 files were closed", closed)
	}
}

func TestNobodyIsTheOperatorOverASignedListener(t *testing.T) {
	f := start(t, func(o *kmsserver.Tuned) {
		o.Operator = func(context.Context, string, string, url.Values) (*kmsserver.Operated, error) {
			t.Error("it was asked")
			return nil, nil
		}
	})
	response, err := f.web.Get("http://" + f.address + "/keys")
	must(t, err)
	defer response.Body.Close()
	if response.StatusCode < 400 {
		t.Errorf("status %d", response.StatusCode)
	}
}

type closer struct {
	io.Reader
	closed *int
}

func (c closer) Close() error { *c.closed++; return nil }
