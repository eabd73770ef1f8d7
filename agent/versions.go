package agent

import (
	"context"
	"slices"

	"secretagent/agent/endpoint"
	"secretagent/upstream"
)

// maxVersionsShown bounds the versions of one secret that are shown; it is also the most that
// the built-in backend keeps without their labels.
const maxVersionsShown = 100

// versions lists the versions of a secret from a backend that is ours. On the cloud it would
// cost a call of a kind that is granted sparingly.
func (a *Agent) versions(ctx context.Context, name upstream.SecretName) (endpoint.VersionList, error) {
	out, err := a.backend.manager().ListSecretVersionIDs(ctx, upstream.ListSecretVersionIDsInput{
		SecretName: name, IncludeDeprecated: true, Page: upstream.Page{Number: 1, Size: maxVersionsShown},
	})
	if err != nil {
		return endpoint.VersionList{}, err
	}
	slices.Reverse(out.Versions)
	return endpoint.VersionList{
		SecretName: name, Versions: append([]upstream.SecretVersion{}, out.Versions...), // [] in JSON, not null
		Omitted: max(0, out.TotalCount-len(out.Versions)),
	}, nil
}
