"""The page's style sheet."""

CSS = """
*{box-sizing:border-box}
html{background:var(--paper);color:var(--ink);-webkit-text-size-adjust:100%}
body{margin:0;font:16px/1.55 ui-sans-serif,system-ui,-apple-system,"Segoe UI",Helvetica,Arial,
sans-serif}
main{max-width:60rem;margin:0 auto;padding:2.5rem 1.5rem 5rem}
h1{font-size:1.75rem;line-height:1.2;letter-spacing:-.01em;margin:0 0 .9rem;font-weight:650}
h2{font-size:1.15rem;margin:3rem 0 .8rem;font-weight:650}
h3{font-size:1rem;margin:1.8rem 0 .1rem;font-weight:500;overflow-wrap:anywhere}
p{margin:.4rem 0}
.lede{list-style:none;padding:0;margin:0;font-size:1.06rem}
.lede li{margin:.15rem 0}
.plain{list-style:none;padding:0;margin:0}
.arm{font-weight:650}
.sign{font-size:.7em;margin-right:.35em;vertical-align:.1em}
.scroll+.scroll{margin-top:1.2rem}
.note,figcaption{color:var(--muted);font-size:.86rem;max-width:46rem}
figure{margin:0}
figcaption{margin-top:.4rem}
svg{display:block;width:100%;height:auto}
.narrow{display:none}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem;min-width:100%}
th,td{padding:.4rem .42rem;vertical-align:top;text-align:right;white-space:nowrap;
border-bottom:1px solid var(--rule)}
thead th{color:var(--muted);font-weight:500;white-space:normal;vertical-align:bottom;
border-bottom-color:var(--muted)}
tr>:first-child{text-align:left;padding-left:0}
tr>:last-child{padding-right:0}
tbody th{font-weight:500}
td small{display:block;color:var(--muted);font-size:.76rem;line-height:1.2}
pre,code{font:.82rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
pre{margin:.5rem 0;white-space:pre-wrap;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(15.5rem,1fr));gap:.9rem;
margin:.6rem 0}
.card{border:1px solid var(--rule);border-radius:6px;padding:.7rem .9rem;display:flex;
flex-direction:column;min-width:0}
.card .head{display:flex;justify-content:space-between;gap:1rem;margin:0;overflow-wrap:anywhere}
.card .head span{color:var(--muted);font-size:.86rem;white-space:nowrap}
.card .foot{margin:auto 0 0;font-size:.92rem}
.budgets{display:flex;flex-wrap:wrap;gap:.2rem .55rem;font-size:.78rem;margin:.35rem 0 0;
font-variant-numeric:tabular-nums}
.right{color:var(--s2)}
.wrong{color:var(--s1)}
.budgets .wrong{text-decoration:line-through}
summary{cursor:pointer;padding:.25rem 0}
.more>summary{list-style-position:outside}
details+details{margin-top:.2rem}
@media (max-width:640px){
main{padding:1.5rem 1rem 3rem}
h1{font-size:1.4rem}
.wide{display:none}
.narrow{display:block}
}
@media print{main{max-width:none}section{break-inside:avoid}}
"""
