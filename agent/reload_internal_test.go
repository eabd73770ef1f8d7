package agent

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"secretagent/agent/config"
)

// liveKeys are what a reload changes.
var liveKeys = map[string]bool{
	"secrets": true, "templates": true, "sets": true, "rotations": true, "log.level": true,
	"render.root": true, "render.folderMode": true, "render.stateDir": true, "readyWhen": true,
	"cache.ttl": true, "cache.maxStale": true, "cache.negativeTTL": true, "cache.maxEntries": true, "cache.maxBytes": true,
	"endpoint.listen": true, "endpoint.socket": true, "endpoint.tokenFile": true, "endpoint.tokenMode": true, "endpoint.tokenGroup": true, "endpoint.tokenGrace": true, "endpoint.callers": true, "endpoint.vaultMounts": true, "endpoint.credentials": true,
	"upstream.local.seed": true, "upstream.local.api.accessKeys": true, "upstream.etcd.api.accessKeys": true,
	"upstream.alibaba.endpoints": true, "upstream.alibaba.credentials": true, "upstream.alibaba.timeout": true,
	"metrics.listen": true, "metrics.tokenFile": true,
	"upstream.alibaba.retry": true, "upstream.alibaba.budget": true, "upstream.alibaba.breaker": true,
}

// keysOf calls visit for each key below v with its path. Lists, and what is set or absent as a
// whole, count as one.
func keysOf(v reflect.Value, path string, visit func(path string, field reflect.Value)) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name == "" || name == "-" {
			continue
		}
		field, at := v.Field(i), path+name
		if field.Kind() == reflect.Pointer && !field.IsNil() {
			field = field.Elem()
		}
		switch at {
		case "upstream", "upstream.local", "upstream.local.api", "upstream.etcd", "upstream.etcd.api", "upstream.alibaba", "cache", "endpoint", "render", "log", "metrics":
			if field.Kind() == reflect.Struct {
				keysOf(field, at+".", visit)
			}
		default:
			visit(at, field)
		}
	}
}

// change makes the value of the key at path another one. Of a struct, the first field stands for all.
func change(t *testing.T, path string, v reflect.Value) {
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Int, reflect.Int64:
		v.SetInt(v.Int() + 1)
	case reflect.Uint32:
		v.SetUint(v.Uint() + 1)
	case reflect.Float64:
		v.SetFloat(v.Float() + 1)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
	case reflect.Struct:
		change(t, path, v.Field(0))
	default:
		t.Fatalf("%s: cannot change a %s", path, v.Kind())
	}
}

// Ensure that no key is forgotten: a reload either changes it or refuses it.
func TestEveryKeyIsLiveOrRefused(t *testing.T) {
	met := map[string]bool{}
	for _, kind := range []string{"local", "etcd", "alibaba"} {
		keysOf(reflect.ValueOf(fixedConfig(kind)).Elem(), "", func(path string, _ reflect.Value) {
			met[path] = true
			old, next := fixedConfig(kind), fixedConfig(kind)
			keysOf(reflect.ValueOf(next).Elem(), "", func(at string, field reflect.Value) {
				if at == path {
					change(t, at, field)
				}
			})
			switch err := onlyRestartChanges(old, next); {
			case liveKeys[path] && err != nil:
				t.Errorf("%s: %v", path, err)
			case !liveKeys[path] && (err == nil || !strings.Contains(err.Error(), path)):
				t.Errorf("%s is neither changed by a reload nor refused: %v", path, err)
			}
		})
	}
	for path := range liveKeys {
		if !met[path] {
			t.Errorf("%s is no key", path)
		}
	}
}

func fixedConfig(kind string) *config.Config {
	c := &config.Config{}
	c.Endpoint.Listen, c.Endpoint.Socket, c.Endpoint.MaxWait = "127.0.0.1:2025", "/agent.sock", time.Second
	c.Metrics.Listen = "0.0.0.0:9102"
	switch kind {
	case "local":
		c.Upstream.Local = &config.Local{}
	case "etcd":
		c.Upstream.Etcd = &config.Etcd{}
	case "alibaba":
		c.Upstream.Alibaba = &config.Alibaba{}
	}
	return c
}

// Ensure that a refusal names every key and says what to do.
func TestOnlyRestartChanges(t *testing.T) {
	old, next := fixedConfig("local"), fixedConfig("local")
	if err := onlyRestartChanges(old, next); err != nil {
		t.Errorf("nothing changed: %v", err)
	}
	next.Endpoint.MaxWait, next.Log.Format = time.Minute, "json"
	const want = "endpoint.maxWait cannot change while the agent runs: restart it\nlog.format cannot change while the agent runs: restart it"
	if err := onlyRestartChanges(old, next); err == nil || err.Error() != want {
		t.Errorf("two changes: %v", err)
	}
	if err := onlyRestartChanges(old, fixedConfig("alibaba")); err == nil || !strings.Contains(err.Error(), "needs a restart") {
		t.Errorf("another upstream: %v", err)
	}
}
