'use strict';
(() => {
  const study = JSON.parse(document.getElementById('study').textContent);
  const light = ['#3465a4', '#c4691c', '#2f8f5b', '#8a4fbf', '#b8385f', '#6f7f8f', '#977500', '#1f8a9c'];
  const dark = ['#6fa3e8', '#f0a050', '#5fcf94', '#bd90ee', '#f07f9f', '#a9b7c6', '#d8b840', '#5cc8da'];
  const scheme = window.matchMedia('(prefers-color-scheme: dark)');
  const colour = (name) => {
    const place = Math.max(0, study.subjects.indexOf(name));
    return (scheme.matches ? dark : light)[place % light.length];
  };
  // Whiskers from the low to the high end of each bar's spread.
  const whiskers = {
    id: 'whiskers',
    afterDatasetsDraw(chart) {
      const { ctx, scales: { x } } = chart;
      chart.data.datasets.forEach((set, index) => {
        if (!set.low) return;
        ctx.save();
        ctx.strokeStyle = Chart.defaults.color;
        ctx.lineWidth = 1.5;
        chart.getDatasetMeta(index).data.forEach((bar, at) => {
          if (set.low[at] === null || set.data[at] === null) return;
          const [from, to] = [x.getPixelForValue(set.low[at]), x.getPixelForValue(set.high[at])];
          ctx.beginPath();
          ctx.moveTo(from, bar.y); ctx.lineTo(to, bar.y);
          for (const end of [from, to]) { ctx.moveTo(end, bar.y - 4); ctx.lineTo(end, bar.y + 4); }
          ctx.stroke();
        });
        ctx.restore();
      });
    },
  };
  const figures = (value) => Number(value.toPrecision(3)).toLocaleString('en');
  const makers = {
    bars: (one) => ({
      type: 'bar',
      plugins: [whiskers],
      data: {
        labels: one.labels,
        datasets: [{ label: one.unit, data: one.values, low: one.low, high: one.high,
          backgroundColor: one.labels.map(colour), maxBarThickness: 26 }],
      },
      options: {
        indexAxis: 'y',
        scales: { x: { type: one.logarithmic ? 'logarithmic' : 'linear', beginAtZero: !one.logarithmic,
          title: { display: true, text: one.unit + (one.logarithmic ? ' (logarithmic)' : '') } } },
        plugins: { legend: { display: false }, tooltip: { callbacks: { label: (item) =>
          `${figures(item.parsed.x)} ${one.unit} (${figures(one.low[item.dataIndex])} – ${figures(one.high[item.dataIndex])})` } } },
      },
    }),
    lines: (one) => ({
      type: 'line',
      data: { datasets: one.sets.map((set) => ({ label: set.label, data: set.points, stepped: 'before',
        borderColor: colour(set.label), backgroundColor: colour(set.label), pointRadius: 2, borderWidth: 2 })) },
      options: {
        scales: { x: { type: 'logarithmic', title: { display: true, text: one.unit + ' (logarithmic)' } },
          y: { min: 0, max: 1, title: { display: true, text: 'share of starts' } } },
      },
    }),
    stack: (one) => ({
      type: 'bar',
      data: { labels: one.labels, datasets: one.sets.map((set, index) => ({ label: set.label, data: set.values,
        backgroundColor: (scheme.matches ? dark : light)[index % light.length], maxBarThickness: 30 })) },
      options: { indexAxis: 'y', scales: { x: { stacked: true, title: { display: true, text: one.unit } }, y: { stacked: true } },
        plugins: { legend: { position: 'bottom', labels: { boxWidth: 12 } } } },
    }),
  };
  const draw = () => {
    Chart.defaults.color = scheme.matches ? '#c3cedb' : '#3a4653';
    Chart.defaults.borderColor = scheme.matches ? '#323c49' : '#d8dee6';
    Chart.defaults.animation = false;
    Chart.defaults.maintainAspectRatio = false;
    Chart.defaults.font.family = 'system-ui, sans-serif';
    for (const one of study.charts) {
      const canvas = document.getElementById('chart-' + one.id);
      Chart.getChart(canvas)?.destroy();
      new Chart(canvas, makers[one.kind](one));
    }
  };
  draw();
  scheme.addEventListener('change', draw);
})();
