package web

import (
	"cmp"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/prometheus/model/labels"
)

// Health is how the last scrape of a target went.
type Health string

// The values of [Health], as in Prometheus.
const (
	HealthUnknown Health = "unknown" // not scraped yet
	HealthGood    Health = "up"
	HealthBad     Health = "down"
)

// Target is a target that is being scraped.
type Target struct {
	// DiscoveredLabels are the labels before relabelling.
	DiscoveredLabels labels.Labels
	// Labels are those that every series of the target gets.
	Labels labels.Labels
	// ScrapePool is the name of the scrape configuration.
	ScrapePool string
	// ScrapeURL is what is scraped, with its parameters.
	ScrapeURL string
	// GlobalURL is ScrapeURL as seen from other machines. Default: made from ScrapeURL and [Config].ExternalURL.
	GlobalURL string
	// LastError is why the last scrape failed; empty when it did not.
	LastError string
	// LastScrape is when the last scrape began; zero before the first one.
	LastScrape time.Time
	// LastScrapeDuration is how long the last scrape took.
	LastScrapeDuration time.Duration
	// Health is how the last scrape went. Default: [HealthUnknown].
	Health Health
	// ScrapeInterval and ScrapeTimeout are Prometheus durations, such as 15s.
	ScrapeInterval, ScrapeTimeout string
}

// DroppedTarget is a target that relabelling dropped.
type DroppedTarget struct {
	// DiscoveredLabels are the labels before relabelling.
	DiscoveredLabels labels.Labels
	// ScrapePool is the name of the scrape configuration.
	ScrapePool string
}

// The answer of /api/v1/targets, field for field that of Prometheus.
type (
	targetsData struct {
		ActiveTargets       []activeTargetData  `json:"activeTargets"`
		DroppedTargets      []droppedTargetData `json:"droppedTargets"`
		DroppedTargetCounts map[string]int      `json:"droppedTargetCounts"`
	}
	activeTargetData struct {
		DiscoveredLabels   labels.Labels `json:"discoveredLabels"`
		Labels             labels.Labels `json:"labels"`
		ScrapePool         string        `json:"scrapePool"`
		ScrapeURL          string        `json:"scrapeUrl"`
		GlobalURL          string        `json:"globalUrl"`
		LastError          string        `json:"lastError"`
		LastScrape         time.Time     `json:"lastScrape"`
		LastScrapeDuration float64       `json:"lastScrapeDuration"`
		Health             Health        `json:"health"`
		ScrapeInterval     string        `json:"scrapeInterval"`
		ScrapeTimeout      string        `json:"scrapeTimeout"`
	}
	droppedTargetData struct {
		DiscoveredLabels labels.Labels `json:"discoveredLabels"`
		ScrapePool       string        `json:"scrapePool"`
	}
)

// targets answers with the targets that the parameters state (active, dropped or any, the default) and scrapePool
// choose, ordered by scrape pool. As in Prometheus, the counts of dropped targets are for all pools, and null when
// only active targets are asked for. With fleet=true the answer is another, see fleetTargets.
func (s *Server) targets(r *http.Request) (any, *apiError) {
	if r.URL.Query().Get("fleet") == "true" && s.cfg.FleetTargets != nil {
		return s.fleetTargets(r)
	}
	active, dropped, counts, err := s.cfg.Targets(r.Context())
	if err != nil {
		return nil, providerError(r.Context(), fmt.Errorf("listing targets: %w", err))
	}
	pool := r.URL.Query().Get("scrapePool")
	state := strings.ToLower(r.URL.Query().Get("state"))
	all := state == "" || state == "any"

	data := targetsData{ActiveTargets: []activeTargetData{}, DroppedTargets: []droppedTargetData{}}
	if all || state == "active" {
		global := s.globalURLs()
		for _, t := range active {
			if pool == "" || pool == t.ScrapePool {
				data.ActiveTargets = append(data.ActiveTargets, global.activeTarget(t))
			}
		}
		slices.SortStableFunc(data.ActiveTargets, func(a, b activeTargetData) int { return cmp.Compare(a.ScrapePool, b.ScrapePool) })
	}
	if all || state == "dropped" {
		data.DroppedTargetCounts = counts
		if counts == nil {
			data.DroppedTargetCounts = map[string]int{}
		}
		for _, t := range dropped {
			if pool == "" || pool == t.ScrapePool {
				data.DroppedTargets = append(data.DroppedTargets, droppedTargetData(t))
			}
		}
		slices.SortStableFunc(data.DroppedTargets, func(a, b droppedTargetData) int { return cmp.Compare(a.ScrapePool, b.ScrapePool) })
	}
	return data, nil
}

// fleetTargets answers with targets of the whole fleet, see [status.TargetPage]: those that the parameters pool, health and search choose, at most limit (default 100) from the
// one after the place after on, or before the place before.
func (s *Server) fleetTargets(r *http.Request) (any, *apiError) {
	v := r.URL.Query()
	limit := targetsPerPage
	if l := v.Get("limit"); l != "" {
		n, err := strconv.Atoi(l)
		if err != nil {
			return nil, &apiError{errorBadData, fmt.Errorf("limit %q is not a number", l)}
		}
		limit = n
	}
	q, err := targetQuery(v, limit)
	if err != nil {
		return nil, &apiError{errorBadData, err}
	}
	found, err := s.cfg.FleetTargets(r.Context(), q)
	if err != nil {
		return nil, providerError(r.Context(), err)
	}
	return found, nil
}

// globalURLs turns the URLs of targets on this machine into ones that work from others.
type globalURLs struct {
	ownPort  string   // the port that this process listens on
	external *url.URL // how others reach this process
}

func (s *Server) globalURLs() globalURLs {
	var g globalURLs
	if _, port, err := net.SplitHostPort(s.cfg.ListenAddresses[0]); err == nil {
		g.ownPort = port
	}
	if addrs := s.Addrs(); len(addrs) > 0 {
		if tcp, ok := addrs[0].(*net.TCPAddr); ok {
			g.ownPort = fmt.Sprint(tcp.Port)
		}
	}
	g.external = s.cfg.ExternalURL
	if g.external == nil {
		host, err := os.Hostname()
		if err != nil {
			host = "localhost"
		}
		g.external = &url.URL{Scheme: "http", Host: net.JoinHostPort(host, g.ownPort)}
	}
	return g
}

func (g globalURLs) activeTarget(t Target) activeTargetData {
	if t.GlobalURL == "" {
		t.GlobalURL = g.of(t.ScrapeURL)
	}
	if t.Health == "" {
		t.Health = HealthUnknown
	}
	return activeTargetData{
		DiscoveredLabels:   t.DiscoveredLabels,
		Labels:             t.Labels,
		ScrapePool:         t.ScrapePool,
		ScrapeURL:          t.ScrapeURL,
		GlobalURL:          t.GlobalURL,
		LastError:          t.LastError,
		LastScrape:         t.LastScrape,
		LastScrapeDuration: t.LastScrapeDuration.Seconds(),
		Health:             t.Health,
		ScrapeInterval:     t.ScrapeInterval,
		ScrapeTimeout:      t.ScrapeTimeout,
	}
}

// of replaces a local host by the external one; scheme and port too if the URL is this process's own. Other URLs stay.
func (g globalURLs) of(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return raw
	}
	switch u.Hostname() {
	case "127.0.0.1", "localhost", "::1":
	default:
		return raw
	}
	if u.Port() != "" && u.Port() == g.ownPort {
		u.Scheme, u.Host = g.external.Scheme, g.external.Host
		return u.String()
	}
	host := g.external.Hostname()
	switch {
	case u.Port() != "":
		u.Host = net.JoinHostPort(host, u.Port())
	case strings.Contains(host, ":"):
		u.Host = "[" + host + "]"
	default:
		u.Host = host
	}
	return u.String()
}
