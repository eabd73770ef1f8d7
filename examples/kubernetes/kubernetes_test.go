// Package kubernetes holds a pod with a sidecar; this test reads the manifest strictly and
// holds its parts against each other.
package kubernetes

import (
	"errors"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"

	"secretagent/agent/config"
	"secretagent/examples/internal/example"
)

// The types are as much of the API as the manifest uses, spelled as the API does; any other
// key is an error.

type serviceAccount struct {
	Meta                         `yaml:",inline"`
	AutomountServiceAccountToken *bool `yaml:"automountServiceAccountToken"`
}

type configMap struct {
	Meta `yaml:",inline"`
	Data map[string]string `yaml:"data"`
}

type pod struct {
	Meta `yaml:",inline"`
	Spec struct {
		ServiceAccountName           string `yaml:"serviceAccountName"`
		AutomountServiceAccountToken *bool  `yaml:"automountServiceAccountToken"`
		SecurityContext              struct {
			RunAsNonRoot   bool  `yaml:"runAsNonRoot"`
			RunAsUser      int64 `yaml:"runAsUser"`
			RunAsGroup     int64 `yaml:"runAsGroup"`
			FSGroup        int64 `yaml:"fsGroup"`
			SeccompProfile struct {
				Type string `yaml:"type"`
			} `yaml:"seccompProfile"`
		} `yaml:"securityContext"`
		InitContainers []container `yaml:"initContainers"`
		Containers     []container `yaml:"containers"`
		Volumes        []volume    `yaml:"volumes"`
	} `yaml:"spec"`
}

// Meta begins every object of the API. It is exported for the decoder, which sets it embedded.
type Meta struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	Metadata   struct {
		Name   string            `yaml:"name"`
		Labels map[string]string `yaml:"labels"`
	} `yaml:"metadata"`
}

type probe struct {
	Exec struct {
		Command []string `yaml:"command"`
	} `yaml:"exec"`
	HTTPGet struct {
		Path string `yaml:"path"`
		Port string `yaml:"port"`
	} `yaml:"httpGet"`
	PeriodSeconds    int `yaml:"periodSeconds"`
	TimeoutSeconds   int `yaml:"timeoutSeconds"`
	FailureThreshold int `yaml:"failureThreshold"`
}

type container struct {
	Name          string   `yaml:"name"`
	Image         string   `yaml:"image"`
	RestartPolicy string   `yaml:"restartPolicy"`
	Args          []string `yaml:"args"`

	TerminationMessagePolicy string `yaml:"terminationMessagePolicy"`

	Ports []struct {
		Name          string `yaml:"name"`
		ContainerPort int    `yaml:"containerPort"`
	} `yaml:"ports"`

	Env []struct {
		Name  string `yaml:"name"`
		Value string `yaml:"value"`
	} `yaml:"env"`
	StartupProbe  *probe `yaml:"startupProbe"`
	LivenessProbe *probe `yaml:"livenessProbe"`
	Resources     struct {
		Requests map[string]string `yaml:"requests"`
		Limits   map[string]string `yaml:"limits"`
	} `yaml:"resources"`
	SecurityContext struct {
		RunAsUser                int64 `yaml:"runAsUser"`
		RunAsGroup               int64 `yaml:"runAsGroup"`
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
		Capabilities             struct {
			Drop []string `yaml:"drop"`
		} `yaml:"capabilities"`
	} `yaml:"securityContext"`
	VolumeMounts []volumeMount `yaml:"volumeMounts"`
}

type volumeMount struct {
	Name      string `yaml:"name"`
	MountPath string `yaml:"mountPath"`
	ReadOnly  bool   `yaml:"readOnly"`
}

type volume struct {
	Name      string `yaml:"name"`
	ConfigMap *struct {
		Name string `yaml:"name"`
	} `yaml:"configMap"`
	Projected *struct {
		Sources []struct {
			ServiceAccountToken struct {
				Audience          string `yaml:"audience"`
				ExpirationSeconds int    `yaml:"expirationSeconds"`
				Path              string `yaml:"path"`
			} `yaml:"serviceAccountToken"`
		} `yaml:"sources"`
	} `yaml:"projected"`
	EmptyDir *struct {
		Medium    string `yaml:"medium"`
		SizeLimit string `yaml:"sizeLimit"`
	} `yaml:"emptyDir"`
}

func TestManifestFitsTogether(t *testing.T) {
	account, cm, p := read(t)
	if account.Metadata.Name != p.Spec.ServiceAccountName {
		t.Errorf("the pod's account is %s", p.Spec.ServiceAccountName)
	}
	sidecar, app := p.Spec.InitContainers[0], p.Spec.Containers[0]
	if sidecar.RestartPolicy != "Always" {
		t.Error("the init container is no sidecar")
	}
	volumes := map[string]volume{}
	for _, v := range p.Spec.Volumes {
		volumes[v.Name] = v
	}
	if v := volumes["config"]; v.ConfigMap == nil || v.ConfigMap.Name != cm.Metadata.Name {
		t.Error("the configuration's volume is not the ConfigMap")
	}
	if v := volumes["shared"]; v.EmptyDir == nil || v.EmptyDir.Medium != "Memory" {
		t.Error("the shared volume is not in memory")
	}
	if sidecar.TerminationMessagePolicy != "FallbackToLogsOnError" {
		t.Error("kubectl describe does not show why the sidecar ended")
	}
	if p.Spec.AutomountServiceAccountToken == nil || *p.Spec.AutomountServiceAccountToken {
		t.Error("the token for the API server is mounted")
	}
	checkContainers(t, p, volumes)
	// Every path of the configuration is where something fitting is mounted.
	file := path.Join(sidecar.mount(t, "config"), "agent.yaml")
	cfg, err := config.Parse(file, []byte(cm.Data["agent.yaml"]))
	example.Must(t, err)
	for _, written := range []config.Path{cfg.Endpoint.TokenFile, cfg.Templates[0].Destination, cfg.Render.StateDir} {
		if !strings.HasPrefix(string(written), sidecar.mount(t, "shared")+"/") {
			t.Errorf("%s is not in the shared volume", written)
		}
	}
	checkMemory(t, cfg, sidecar, app, volumes)
	// The application is of another user, and reads by the group of the volume.
	if s := app.SecurityContext; s.RunAsUser == p.Spec.SecurityContext.RunAsUser || p.Spec.SecurityContext.FSGroup == 0 || cfg.Endpoint.TokenMode != 0o640 || cfg.Templates[0].Mode != 0o640 {
		t.Errorf("user %d, group of the volume %d, token %04o, file %04o", s.RunAsUser, p.Spec.SecurityContext.FSGroup, cfg.Endpoint.TokenMode, cfg.Templates[0].Mode)
	}
	token := path.Join(sidecar.mount(t, "rrsa"), volumes["rrsa"].Projected.Sources[0].ServiceAccountToken.Path)
	if got := string(cfg.Upstream.Alibaba.Credentials.OIDCTokenFile); got != token {
		t.Errorf("the token is read from %s and mounted at %s", got, token)
	}
	if !slices.Contains(sidecar.Args, file) {
		t.Errorf("%v does not use %s", sidecar.Args, file)
	}
	checkProbes(t, sidecar, cfg.Endpoint.Listen)
	checkMetrics(t, cfg, p, sidecar)
	if app.mount(t, "shared") != sidecar.mount(t, "shared") ||
		app.Env[0].Value != "http://"+cfg.Endpoint.Listen || app.Env[1].Value != string(cfg.Endpoint.TokenFile) {
		t.Error("the application looks elsewhere than the agent offers")
	}
}

// checkContainers looks at what every container of a pod must have.
func checkContainers(t *testing.T, p pod, volumes map[string]volume) {
	t.Helper()
	for _, c := range slices.Concat(p.Spec.InitContainers, p.Spec.Containers) {
		s := c.SecurityContext
		if s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || !s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []string{"ALL"}) {
			t.Errorf("%s is not hardened", c.Name)
		}
		for _, m := range c.VolumeMounts {
			if _, known := volumes[m.Name]; !known {
				t.Errorf("%s mounts %s, which is not declared", c.Name, m.Name)
			}
		}
	}
}

// checkProbes looks whether no probe reads the configuration, and none is cut off while it waits.
func checkProbes(t *testing.T, sidecar container, address string) {
	t.Helper()
	for flag, p := range map[string]*probe{"--ready --wait 5s": sidecar.StartupProbe, "--live": sidecar.LivenessProbe} {
		want := "/secretagent status " + flag + " --address " + address
		if p == nil || strings.Join(p.Exec.Command, " ") != want || p.TimeoutSeconds < 5 {
			t.Errorf("the probe that should ask for %s is %+v", flag, p)
		}
	}
}

// checkMemory looks at what lies in memory: restarted alone, the agent serves without upstream from its
// sealed cache, which is where a restart of the container leaves it, twice as long as it may be, with
// the key where the application cannot see it; and all of it is within what the container may use.
func checkMemory(t *testing.T, cfg *config.Config, sidecar, app container, volumes map[string]volume) {
	t.Helper()
	size := func(name string) int64 { return mebibytes(t, volumes[name].EmptyDir.SizeLimit) }
	below := func(path config.Path, name string) bool {
		return strings.HasPrefix(string(path), sidecar.mount(t, name)+"/")
	}
	sealed := cfg.Cache.Sealed
	if !below(sealed.Path, "shared") || 2*int64(sealed.MaxBytes) >= size("shared") {
		t.Errorf("the sealed cache: %+v", sealed)
	}
	if !below(sealed.Keyring, "keys") || volumes["keys"].EmptyDir.Medium != "Memory" || slices.ContainsFunc(app.VolumeMounts, func(m volumeMount) bool { return m.Name == "keys" }) {
		t.Errorf("the keyring: %s", sealed.Keyring)
	}
	if limit := mebibytes(t, sidecar.Resources.Limits["memory"]); size("shared")+size("keys") > limit/2 {
		t.Errorf("volumes in memory count against a limit of %d", limit)
	}
}

// mount returns where c mounts a volume.
func (c container) mount(t *testing.T, name string) string {
	t.Helper()
	for _, m := range c.VolumeMounts {
		if m.Name == name {
			return m.MountPath
		}
	}
	t.Fatalf("%s does not mount %s", c.Name, name)
	return ""
}

// mebibytes returns the bytes of a quantity such as 16Mi.
func mebibytes(t *testing.T, quantity string) int64 {
	t.Helper()
	number, found := strings.CutSuffix(quantity, "Mi")
	n, err := strconv.ParseInt(number, 10, 32)
	if !found || err != nil {
		t.Fatalf("%q is not a quantity in Mi", quantity)
	}
	return n << 20
}

func read(t *testing.T) (account serviceAccount, cm configMap, p pod) {
	t.Helper()
	dec := yaml.NewDecoder(strings.NewReader(example.Read(t, "sidecar.yaml")), yaml.Strict())
	example.Must(t, errors.Join(dec.Decode(&account), dec.Decode(&cm), dec.Decode(&p)))
	if err := dec.Decode(&Meta{}); !errors.Is(err, io.EOF) {
		t.Errorf("after the pod: %v", err)
	}
	if account.APIVersion != "v1" || account.Kind != "ServiceAccount" || cm.APIVersion != "v1" || cm.Kind != "ConfigMap" || p.APIVersion != "v1" || p.Kind != "Pod" || len(p.Spec.InitContainers) != 1 || len(p.Spec.Containers) != 1 {
		t.Fatalf("%s and %s are not what is expected", cm.Kind, p.Kind)
	}
	return account, cm, p
}
